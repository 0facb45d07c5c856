// Where peers stand in the picture. Laid out once, and then only for who is new: a picture that dances says nothing.

import { forceCollide, forceLink, forceManyBody, forceRadial, forceSimulation, type SimulationNodeDatum } from 'd3-force';

export interface Spot extends SimulationNodeDatum {
  id: string;
  /** How far out: 0 this node, 1 direct, 2 through a relay. */
  ring: number;
}

export interface Line {
  from: string;
  to: string;
  relayed: boolean;
}

/** More than that is a cloud: the nearest are drawn, the table has all. */
export const MOST = 300;

const spots = new Map<string, Spot>();

export function layout(wanted: { id: string; ring: number }[], lines: Line[]): Map<string, Spot> {
  const known = new Set(wanted.map((one) => one.id));
  for (const id of spots.keys()) if (!known.has(id)) spots.delete(id);
  let fresh = 0;
  for (const { id, ring } of wanted) {
    const spot = spots.get(id);
    if (spot) {
      spot.ring = ring;
      if (ring > 0) {
        spot.fx = spot.x;
        spot.fy = spot.y;
      }
    } else {
      fresh += 1;
      // Round and round by the golden angle: near its place, and the same for the same order.
      const angle = spots.size * 2.4;
      spots.set(id, { id, ring, x: Math.cos(angle) * 110 * ring, y: Math.sin(angle) * 80 * ring });
    }
    if (ring === 0) Object.assign(spots.get(id)!, { fx: 0, fy: 0 });
  }
  if (fresh) {
    const nodes = [...spots.values()];
    const links = lines
      .filter((line) => spots.has(line.from) && spots.has(line.to))
      .map((line) => ({ source: line.from, target: line.to }));
    // All at once, off the screen: nothing moves for those who want nothing to move, nor for anybody else.
    forceSimulation<Spot>(nodes)
      .force('apart', forceManyBody().strength(-160))
      .force('collide', forceCollide(30))
      .force('ring', forceRadial<Spot>((spot) => spot.ring * 115, 0, 0).strength(0.7))
      .force('lines', forceLink<Spot, { source: string; target: string }>(links).id((spot) => spot.id).distance(100).strength(0.15))
      .stop()
      .tick(160);
    for (const spot of nodes) spot.fx = spot.fy = spot.ring === 0 ? 0 : null;
  }
  return spots;
}
