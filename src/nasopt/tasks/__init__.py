"""What is learned from: data sets and how they are loaded, split and prepared."""
