"""The page for people at `/`: static files, and the headers that shut out everything else."""
