// Short words at the edge of the page, which screen readers say, too.

export interface Notice {
  id: number;
  text: string;
  bad: boolean;
}

class Notices {
  all = $state.raw<Notice[]>([]);
  #next = 1;

  say(text: string, bad = false): void {
    const notice = { id: this.#next++, text, bad };
    this.all = [...this.all, notice].slice(-3);
    setTimeout(() => this.drop(notice.id), bad ? 12_000 : 5000);
  }

  drop(id: number): void {
    this.all = this.all.filter((notice) => notice.id !== id);
  }
}

export const notices = new Notices();

export async function copy(text: string, what = 'copied'): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    notices.say(what);
  } catch {
    notices.say('the browser does not let this page copy', true);
  }
}

/** Saves text as a file on the reader's machine. */
export function download(name: string, text: string, type = 'application/json'): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
