"""One function a job: settings in, a finished `Job` out. The scripts in jobs/ and the demo call the same ones."""
