"""Who proposes architectures: every module is one family, named methods are recipes over its parts."""
