"""Tests of the pure core: playbooks, a simulation, planted bugs, properties."""
