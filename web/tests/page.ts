// What the tests share: a swarm for all of them, and pages that fail on any error of their own.

import { test as base, expect, type Page } from '@playwright/test';
import axe from 'axe-core';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Swarm, swarm } from './swarm';

export { expect };

export interface Out {
  /** Errors of the page so far. */
  errors: string[];
}

type Storage = Awaited<ReturnType<import('@playwright/test').BrowserContext['storageState']>>;

export const test = base.extend<{ open: (path: string) => Promise<Page>; errors: string[] }, { nodes: Swarm; session: Storage }>({
  nodes: [
    async ({}, use) => {
      const nodes = await swarm();
      await use(nodes);
      for (const node of [nodes.front, ...nodes.workers]) await node.kill();
    },
    { scope: 'worker', timeout: 120_000 },
  ],
  session: [
    async ({ browser, nodes }, use) => {
      const context = await browser.newContext();
      const page = await context.newPage();
      await page.goto(await nodes.front.door());
      // The title stands there before anybody is logged in.
      await expect(page.getByRole('heading', { name: 'Health' })).toBeVisible();
      const state = await context.storageState();
      await context.close();
      await use(state);
    },
    { scope: 'worker' },
  ],
  storageState: async ({ session }, use) => use(session),
  errors: async ({ page }, use) => {
    const errors: string[] = [];
    page.on('pageerror', (error) => errors.push(`exception: ${error.message}`));
    page.on('console', (message) => {
      if (message.type() === 'error' || message.type() === 'warning') errors.push(`${message.text()} (${message.location().url})`);
    });
    page.on('request', (request) => {
      if (!/^(http:\/\/127\.0\.0\.1:|data:|blob:)/.test(request.url())) errors.push(`asks outside: ${request.url()}`);
    });
    await use(errors);
  },
  open: async ({ page, nodes, errors }, use) => {
    await use(async (path) => {
      await page.goto(`${nodes.front.api}/#/${path}`);
      return page;
    });
    // Pages ask for routes that this node may not have yet, and say so.
    const unexpected = errors.filter((error) => !/404 .*\/api\/v1\/(services|agents)|404 .*\/v1\/models/.test(error));
    expect(unexpected, 'errors of the page').toEqual([]);
  },
});

/** Findings of axe that keep people out. */
export async function barriers(page: Page): Promise<string[]> {
  // Evaluated by the debugger: the page's policy lets no script in otherwise.
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() =>
    (window as unknown as { axe: typeof axe }).axe.run(document, { resultTypes: ['violations'] }),
  );
  return violations
    .filter((found) => found.impact === 'serious' || found.impact === 'critical')
    .map((found) => `${found.id}: ${found.help}: ${found.nodes.map((node) => `${node.html} ${node.failureSummary}`).join(' | ')}`);
}

export async function picture(page: Page, name: string): Promise<void> {
  const out = process.env.QUELEA_WEB_OUT;
  if (!out) return;
  mkdirSync(join(out, 'pictures'), { recursive: true });
  await page.screenshot({ path: join(out, 'pictures', `${name}.png`), fullPage: true });
}
