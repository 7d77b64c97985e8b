"""Stands in for NVIDIA's and Ascend's apex."""
