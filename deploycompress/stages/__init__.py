"""What a pipeline is made of, one file a stage."""
