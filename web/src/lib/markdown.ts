// A model's words as HTML. They are a stranger's: what is left after cleaning is text with structure, no more. Pictures are
// left out, as fetching one tells somebody what was answered; links open elsewhere and say nothing of where from.

import DOMPurify from 'dompurify';
import { Marked } from 'marked';

const escaped = (text: string) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

// HTML among the words is shown as it was written, as are pictures.
const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: { html: ({ text }) => escaped(text), image: ({ raw }) => escaped(raw) },
});

const TAGS =
  'p br hr strong em del code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 table thead tbody tr th td a span'.split(' ');

DOMPurify.addHook('afterSanitizeAttributes', (node) => {
  if (node.tagName !== 'A') return;
  const href = node.getAttribute('href') ?? '';
  if (!/^(https?:|mailto:)/i.test(href)) node.removeAttribute('href');
  node.setAttribute('rel', 'noopener noreferrer nofollow');
  node.setAttribute('target', '_blank');
});

/** The page has one h1 and h2s of its own. */
const deeper = (html: string) =>
  html.replace(/<(\/?)h([1-6])/g, (_, close: string, n: string) => `<${close}h${Math.min(6, Number(n) + 2)}`);

export function markdown(text: string): string {
  const html = marked.parse(text, { async: false });
  return DOMPurify.sanitize(deeper(html), { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ['href', 'align'] });
}
