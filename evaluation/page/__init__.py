"""The page of a run, RUN/page.html: what was run and what came of it, in one file that needs nothing else."""
