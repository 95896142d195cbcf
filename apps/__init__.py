"""What a person touches: the fewstep command, the web server and its page."""
