"""What a user can set, and how arguments become `Settings`. Knows nothing but Python."""
