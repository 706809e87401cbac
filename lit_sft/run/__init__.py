"""What a run leaves behind: its folder, its figures, what makes it the same run again."""
