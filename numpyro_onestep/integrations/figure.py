"""A matplotlib figure without pyplot, which a notebook shows all the same."""

from io import BytesIO

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that knows its picture: a notebook shows it as the last value of a cell.

    Figures of pyplot are kept by it until they are closed.  For any other figure a notebook knows a
    picture only once pyplot has drawn one.
    """

    def _repr_png_(self) -> bytes:
        picture = BytesIO()
        self.savefig(picture, format="png", bbox_inches="tight")
        return picture.getvalue()
