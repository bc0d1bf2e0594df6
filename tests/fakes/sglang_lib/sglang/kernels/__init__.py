"""Where SGLang's own JIT modules are since 0.5.17. A test writes the functions of one release below `ops`."""
