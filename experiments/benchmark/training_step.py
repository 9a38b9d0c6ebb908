def run(config, platform, path): raise NotImplementedError
