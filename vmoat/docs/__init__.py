"""Pages that ``vmoat help`` prints."""
