"""The Claude Code plugin; its skill is in the package for `vmoat skill install`."""
