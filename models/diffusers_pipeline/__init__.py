"""Scheduler, network and pipeline with the interface of diffusers; ``models.export`` copies these files.

Each is one module that a copy of it can stand for: they import torch and diffusers, and from this repository only what
models/io/diffusers_dir.py puts into the copy, or what needs the repository, the network.
"""
