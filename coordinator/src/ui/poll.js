// Something that is asked again and again while the page is looked at, less often while nobody answers.

import { Away, Refusal } from "./api.js";

const AWAY_SECONDS_MAX = 5;

export class Poll {
  constructor(work, seconds) {
    Object.assign(this, { work, seconds, timer: null, running: false, again: false, failures: 0 });
    document.addEventListener("visibilitychange", () => document.hidden || this.now());
    this.now();
  }

  // Asks at once, or as soon as the answer that is awaited is there.
  async now() {
    if (this.running) {
      this.again = true;
      return;
    }
    clearTimeout(this.timer);
    this.running = true;
    this.again = false;
    try {
      await this.work();
      this.failures = 0;
    } catch (error) {
      this.failures += 1;
      // The page says both of itself: that nobody answers, and that a key is wanted.
      const isShown = error instanceof Away || (error instanceof Refusal && error.status === 401);
      if (!isShown) console.warn(error.message);
    } finally {
      this.running = false;
    }
    if (this.again && !this.failures) return this.now();
    if (document.hidden) return;
    const wait = this.failures ? Math.min(this.failures, AWAY_SECONDS_MAX) : this.seconds;
    this.timer = setTimeout(() => this.now(), wait * 1e3);
  }
}
