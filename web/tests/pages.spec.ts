// Every page: loads without an error of its own, keeps nobody out, fits narrow screens, in both themes.

import { barriers, expect, picture, test } from './page';

const PAGES = [
  ['', 'Dashboard'],
  ['peers', 'Peers'],
  ['services', 'Services'],
  ['chat', 'Chat'],
  ['dht', 'DHT'],
  ['economy', 'Economy'],
  ['storage', 'Storage'],
  ['compute', 'Compute'],
  ['settings', 'Settings'],
  ['logs', 'Logs'],
] as const;

for (const [path, title] of PAGES) {
  test(`${title} in both themes and narrow`, async ({ open, page }) => {
    await page.emulateMedia({ colorScheme: 'light', reducedMotion: 'reduce' });
    await open(path);
    await expect(page.getByRole('heading', { level: 1 })).toHaveText(title);
    await expect(page.getByRole('navigation').getByRole('link', { name: title })).toHaveAttribute('aria-current', 'page');
    // Nothing is on its way any more.
    await expect(page.getByText(/^Asking/)).toHaveCount(0);
    expect(await barriers(page), 'light').toEqual([]);
    await picture(page, `${title}-light`);

    await page.emulateMedia({ colorScheme: 'dark', reducedMotion: 'reduce' });
    // Drawn, and with it every style found anew.
    await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
    expect(await barriers(page), 'dark').toEqual([]);
    await picture(page, `${title}-dark`);

    await page.setViewportSize({ width: 360, height: 720 });
    const wide = () => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    await expect.poll(wide, 'nothing sticks out at 360 px').toBeLessThanOrEqual(0);
    expect(await barriers(page), 'narrow').toEqual([]);
    await picture(page, `${title}-narrow`);
  });
}

test('the keyboard reaches everything, the skip link first', async ({ open, page }) => {
  await open('');
  await expect(page.getByRole('heading', { level: 1 })).toHaveText('Dashboard');
  await page.keyboard.press('Tab');
  await expect(page.getByRole('link', { name: 'Skip to content' })).toBeFocused();
  await page.keyboard.press('Enter');
  await expect(page.getByRole('main')).toBeFocused();
  await page.getByRole('link', { name: 'Peers', exact: true }).first().focus();
  await page.keyboard.press('Enter');
  await expect(page.getByRole('heading', { level: 1 })).toHaveText('Peers');
  await expect(page.getByRole('main')).toBeFocused();
});

test('the chosen theme stays', async ({ open, page }) => {
  await open('settings');
  await page.getByRole('radio', { name: 'dark' }).check();
  await expect(page.locator('html')).toHaveAttribute('data-theme', 'dark');
  await page.reload();
  await expect(page.locator('html')).toHaveAttribute('data-theme', 'dark');
  await page.getByRole('radio', { name: 'as the system' }).check();
});
