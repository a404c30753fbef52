"""What tests share: models, estimators, programs that tests run."""
