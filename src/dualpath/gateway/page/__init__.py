"""The live page at /dualpath: one .html, one .css, one .js, fed by one sampler however many pages are open."""
