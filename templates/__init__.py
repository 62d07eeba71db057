"""Files that are rendered or laid into the guest."""
