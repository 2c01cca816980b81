"""What the page asks for about single samples and layers."""

from starlette.routing import Route


def api_routes() -> list[Route]:
    """Paths below `/api/`."""
    return []
