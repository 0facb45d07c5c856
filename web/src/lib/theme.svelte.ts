// Light, dark, or as the system has it.

const KEY = 'quelea.theme';

export type Theme = 'auto' | 'light' | 'dark';

class ThemeChoice {
  chosen = $state<Theme>('auto');
  /** Counts changes, for what draws with colours of its own. */
  turn = $state(0);

  constructor() {
    const kept = localStorage.getItem(KEY);
    if (kept === 'light' || kept === 'dark') this.chosen = kept;
    this.#apply();
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.turn++);
  }

  set(theme: Theme): void {
    this.chosen = theme;
    if (theme === 'auto') localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
    this.#apply();
  }

  #apply(): void {
    document.documentElement.dataset.theme = this.chosen;
    this.turn++;
  }
}

export const theme = new ThemeChoice();

/** A colour of the style sheet, as it is now. */
export function colour(name: string): string {
  const probe = document.createElement('span');
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

export const calm = () => matchMedia('(prefers-reduced-motion: reduce)').matches;
