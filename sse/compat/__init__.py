"""Other packages' names over this service, for their apps. Each module is called as its package is."""
