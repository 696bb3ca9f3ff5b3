"""Synthesis of near-identity distractors: the work list, the engines, the pipeline."""
