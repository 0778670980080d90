"""Statistics and figures from the predictions table; knows neither torch nor MLflow."""
