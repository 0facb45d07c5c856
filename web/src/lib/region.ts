/** What a box that scrolls sideways or down needs, so that it can be reached and moved with the keyboard. */
export function region(label: string) {
  return { role: 'region', 'aria-label': label, tabindex: 0 } as const;
}
