"""A run on disk and in processes: its folder, its states, how it resumes and how it ends."""
