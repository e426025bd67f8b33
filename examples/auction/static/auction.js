"use strict";
async function open() {
  const lots = await (await fetch("/lots")).json();
  for (const [lot, { title, price }] of Object.entries(lots)) {
    const part = document.getElementById("lot").content.cloneNode(true).firstElementChild;
    const find = (name) => part.querySelector(name);
    part.id = lot;
    find("h2").textContent = title;
    show(part, price, "");
    find("form").addEventListener("submit", (event) => bid(event, lot, find(".error")));
    document.getElementById("lots").append(part);
  }
  // The feed begins with the newest events, so a bid from before this moment is shown, too.
  const feed = SSE("/sse", { channels: Object.keys(lots).map((lot) => `auction/${lot}`), replay: 20 });
  const part = ({ channel }) => document.getElementById(channel.split("/")[1]);
  feed.on("price", (event) => show(part(event), event.json.price, event.json.bidder));
  feed.on("people", (event) => part(event).querySelector(".people").textContent = `Here: ${event.json.join(", ")}`);
}

function show(part, price, bidder) {
  part.querySelector(".price").textContent = price ? `${price} €` : "no bid yet";
  part.querySelector(".bidder").textContent = bidder && `by ${bidder}`;
  part.querySelector("input").min = price + 1;
}

async function bid(event, lot, error) {
  event.preventDefault();
  const form = event.target;
  const answer = await fetch(`/lots/${lot}/bid`, { method: "POST", body: new FormData(form) });
  error.textContent = answer.ok ? "" : (await answer.json()).error;
  if (answer.ok) form.reset();
}

const called = document.getElementById("name");
called.value = localStorage.getItem("name") || "";
called.form.addEventListener("submit", () => localStorage.setItem("name", called.value));
open();
