// A colour for each worker, the same wherever it is named: on the image, in the timeline, in the cluster.

const HUES = 8;
const given = new Map();

export function hue(worker) {
  if (!given.has(worker)) given.set(worker, given.size % HUES);
  return given.get(worker);
}
