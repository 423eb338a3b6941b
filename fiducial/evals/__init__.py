"""What a policy can do, with intervals; what a run's numbers mean; and the page that shows both."""
