"""The zoo: many models, sizes, precisions and backends measured alike, in one table."""
