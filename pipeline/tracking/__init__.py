"""Where metrics go: the terminal, metrics.jsonl, MLflow. None of it can slow or end training (contract 7)."""
