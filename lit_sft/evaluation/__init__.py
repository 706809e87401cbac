"""What a trained model is asked, and how its answers are graded."""
