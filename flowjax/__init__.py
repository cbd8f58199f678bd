"""flowjax: flow matching and average-velocity models as pure JAX functions."""
