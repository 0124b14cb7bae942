class Stats:
    def info(self, pid, wall):
        return {}

    def infos(self, pids, wall):
        return {}
