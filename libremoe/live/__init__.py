"""What happened this morning: sources that a person chose, one way out for bytes, snapshots, and citations checked."""
