"""Figures. Each function returns a matplotlib figure; the caller saves it."""

from s2s_jax.plots.charts import bars as bars
from s2s_jax.plots.charts import curves as curves
from s2s_jax.plots.charts import lines as lines
from s2s_jax.plots.charts import spread as spread
from s2s_jax.plots.forecasts import forecasts as forecasts
from s2s_jax.plots.heatmap import heatmap as heatmap
from s2s_jax.plots.learning_curve import learning_curve as learning_curve
from s2s_jax.plots.pictures import images as images
from s2s_jax.plots.pictures import read_line as read_line
from s2s_jax.plots.texts import marked_text as marked_text
