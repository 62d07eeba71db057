// What a worktree's state comes to, in one word, one colour and the reason.

const PLAIN = {
  absent: ["no VM yet", "idle"],
  stopped: ["stopped", "idle"],
  starting: ["starting", "busy"],
  paused: ["paused", "warn"],
  broken: ["broken", "bad"],
};

export const failed = (vm) =>
  !vm.working && vm.run.state === "failed" && vm.run.code !== 130;

/** {word, tone}; the tones are ok, busy, bad, warn, idle. */
export function statusOf(vm) {
  if (vm.working) {
    const stage = vm.stages.find((each) => each.state === "running");
    return { word: stage ? `${stage.name}…` : "working", tone: "busy" };
  }
  if (vm.gone) return { word: "orphan", tone: "warn" };
  if (failed(vm) && vm.state !== "stopped" && vm.state !== "absent") {
    return { word: "failed", tone: "bad" };
  }
  if (vm.state === "running") {
    if (vm.health === "healthy") return { word: "healthy", tone: "ok" };
    return vm.health === "unhealthy"
      ? { word: "unhealthy", tone: "bad" }
      : { word: "running", tone: "ok" };
  }
  const [word, tone] = PLAIN[vm.state] ?? [vm.state, "warn"];
  return { word, tone };
}

export const isUp = (vm) => ["running", "starting", "paused"].includes(vm.state);
