"""Judges: what a judge lane's runner holds in place of a pipeline. They see pixels and questions, and no secret."""
