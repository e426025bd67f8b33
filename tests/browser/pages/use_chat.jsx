// A page with the AI SDK's useChat, bundled by the test, over the example's /api/chat.
import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { createElement as h } from "react";
import { createRoot } from "react-dom/client";

function Chat() {
  const { messages, status, error, sendMessage } = useChat({ transport: new DefaultChatTransport({ api: "/api/chat" }) });
  window.chat = { status, error: error ? String(error) : "", ask: (text) => sendMessage({ text }) };
  const answer = messages.filter(({ role }) => role === "assistant").flatMap(({ parts }) => parts);
  return h("p", { id: "chat" }, answer.map((part) => part.text || "").join(""));
}

createRoot(document.body.appendChild(document.createElement("div"))).render(h(Chat));
