"""Who runs in the next step, on which pages, under which mask. `Scheduler` holds the lives of requests, `StepPlanner` fills steps."""
