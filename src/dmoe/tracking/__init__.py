"""Trackers: callbacks that send a training's configuration, curves and figures to where runs are compared."""
