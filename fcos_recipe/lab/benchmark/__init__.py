"""Side-by-side measurements of this recipe, stock paddledet and torchvision.

Each side runs in its own process, which stays alive and does one step per request. So the sides
take turns on the same machine within the same minutes, and start-up is not timed.
"""
