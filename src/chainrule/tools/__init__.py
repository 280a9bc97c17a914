"""What other programs take: results as JSON and SARIF, baselines, the pytest plug-in, the MCP server."""
