"""Side-by-side measurements of this recipe, stock paddledet and torchvision.

Each side runs in a process of its own that stays alive and works one step per request, so that the
sides take turns on the same machine in the same minutes and start-up is not timed.
"""
