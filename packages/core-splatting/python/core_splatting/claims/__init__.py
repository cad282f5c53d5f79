"""The claims of papers that core-splatting implements, measured."""
