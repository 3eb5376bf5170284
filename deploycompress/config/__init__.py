"""pipeline.yaml -> frozen PipelineConfig."""
