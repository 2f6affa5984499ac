"""What a WebUI's user sees, reads and types; imports no host of ours."""
