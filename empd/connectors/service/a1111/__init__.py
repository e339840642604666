"""Automatic1111's Stable Diffusion WebUI (and its forks) through its REST API."""
